"""Similar users: what others had chosen before a moment, how alike that is, and what came next."""
