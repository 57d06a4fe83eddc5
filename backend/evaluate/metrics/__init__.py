"""One file a family of metrics; `registry` lists them all."""
