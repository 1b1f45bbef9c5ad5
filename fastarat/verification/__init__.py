"""This installation against stored results: a kit of AutoAttack's, a folder of several."""
