"""One file a kind of loss, one function an equation."""
