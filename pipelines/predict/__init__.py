"""Labels new texts by what a run fitted."""
