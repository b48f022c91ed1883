"""`isobit gpu check`: steps on every GPU and pair of GPUs, each in a process of its own.

`ladder` lists the steps, `runner` runs them, `child` is one of their processes; what steps do is in
`products`, `attention`, `models`, `sums` and `speed`. `facts` tells what the machine is, `verdict`
what to use of it.
"""
