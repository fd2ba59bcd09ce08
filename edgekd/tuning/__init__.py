"""Choose a placement and session options by measuring them on this machine: `edgekd tune`."""
