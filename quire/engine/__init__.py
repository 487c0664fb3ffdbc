"""The only floor that sees brain, muscle and tongue: the core's loop, its process, and the two Python front ends."""
