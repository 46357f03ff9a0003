"""The life of a training run: from its first step to what it leaves in its folder."""
