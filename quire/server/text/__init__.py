"""Work on texts that takes long or runs code of strangers: done in processes that can be stopped."""
