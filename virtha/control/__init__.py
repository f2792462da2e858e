"""Use cases: everything an operator may ask for, and what hosts report. The only way to state."""

from virtha.control.control import Control, make_control

__all__ = ["Control", "make_control"]
