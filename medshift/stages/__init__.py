"""The stages of the companion: library functions that each write one folder of results.

Every module has one `build(job, **arguments)`. What it reads are the folders of its inputs, what it writes goes into
its own folder, and what it returns are facts to stand in every figure made from it (a data set's hash, the weights').
"""
