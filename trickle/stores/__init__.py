"""Where tables keep their data: memory, LMDB."""
