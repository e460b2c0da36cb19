"""How a move's proposal is stored: as plain values where it can be, else as one that lives in this process."""

import importlib
import json
import secrets
import sys
import weakref
from collections.abc import Mapping
from typing import Any

from ..errors import ModelError

# Proposals by a number that no other one ever has, unlike their addresses.
_in_memory: "weakref.WeakValueDictionary[int, Any]" = weakref.WeakValueDictionary()


def describe(proposal: Any) -> dict[str, Any]:
    """Plain values that name a proposal: its own state, or its identity within this process."""
    name = f"{type(proposal).__module__}:{type(proposal).__qualname__}"
    if hasattr(proposal, "to_state") and hasattr(type(proposal), "from_state"):
        return {"class": name, "state": _as_text(proposal.to_state())}
    known = next((number for number, other in _in_memory.items() if other is proposal), None)
    number = secrets.randbits(62) if known is None else known
    _in_memory[number] = proposal
    return {"class": name, "identity": number}


def proposal_state(move_state: Mapping[str, Any]) -> dict[str, Any]:
    """What `to_state` of a move's proposal gave, from the move's own state; {} where it lives in this process only."""
    state = move_state["proposal"].get("state", {})
    return dict(json.loads(state) if isinstance(state, str) else state)


def _as_text(state: dict[str, Any]) -> Any:
    """JSON where it gives the same values back: hosts write a move as YAML in every iteration, value by value."""
    try:
        text = json.dumps(state, sort_keys=True)
        return text if json.loads(text) == state else state
    except (TypeError, ValueError):
        return state


def canonical(value: Any) -> Any:
    """A copy with sorted keys, in which equal strings are one object: equal states are pickled to the same bytes.

    Hosts compare moves by their pickles, which keep the order of keys and tell one string used twice from two equal
    ones; storage keeps neither.
    """
    if isinstance(value, dict):
        return {canonical(key): canonical(value[key]) for key in sorted(value, key=str)}
    if isinstance(value, list | tuple):
        return type(value)(canonical(item) for item in value)
    return sys.intern(value) if type(value) is str else value


def restore(description: dict[str, Any]) -> Any:
    """The proposal that gave `describe`; raises ModelError where it cannot be made or found."""
    name = description.get("class", "unknown")
    if "state" in description:
        module, _, qualified = name.partition(":")
        cls = getattr(importlib.import_module(module), qualified, None)
        if cls is None or not hasattr(cls, "from_state"):
            raise ModelError(f"the stored proposal {name} cannot be found; install the package that defines it")
        return cls.from_state(proposal_state({"proposal": description}))
    found = _in_memory.get(description.get("identity", -1))
    if found is None or f"{type(found).__module__}:{type(found).__qualname__}" != name:
        raise ModelError(
            f"a move was restored without its proposal {name}, which lived in another process; "
            "give the proposal to_state and from_state, or make the move anew"
        )
    return found
