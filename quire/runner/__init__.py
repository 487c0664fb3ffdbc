"""The muscle of one rank: rows on the device, the step, memory. It computes and never decides."""
