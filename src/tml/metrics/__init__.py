"""How good predictions and orders are: binary metrics, curves, rankings."""
