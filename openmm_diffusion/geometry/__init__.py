"""Tensors only: dihedral angles and rigid rotations. No molecules, no files."""
