"""Geometry of frames: rotations, rigid frames, residue constants, atoms, backbones, links, dihedrals. No files."""
