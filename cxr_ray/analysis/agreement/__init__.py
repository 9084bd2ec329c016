"""The table `agreement`: how far statements depend on the choices behind them. One module a kind of rows."""
