"""Who owns which piece: atoms, shards, and the plan that everything else obeys."""
