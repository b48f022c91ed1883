"""Model folders changed at random: every command ends in time, in memory, and with a code."""
