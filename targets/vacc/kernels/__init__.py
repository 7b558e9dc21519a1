"""One file a kind of kernel: the shapes of a composite and the device -> its tile kernel.

Each is written as the text of docs/vacc-tiles.md and read back, so what is generated is what can be
read. Tiles are as large as half the chip allows, and multiples of the matrix unit's.
"""
