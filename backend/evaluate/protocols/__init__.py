"""One file a protocol; `registry` lists them all."""
