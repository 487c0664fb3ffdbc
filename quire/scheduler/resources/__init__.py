"""One file per scarce thing. They never import each other; the protocol is `scheduler/resource.py`."""
