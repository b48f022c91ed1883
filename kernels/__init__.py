"""Pure compute on one device: layouts, reference ops, CPU kernels. Knows no model, no rank."""
