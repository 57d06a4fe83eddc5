"""One file per tab: layout and wiring only."""
