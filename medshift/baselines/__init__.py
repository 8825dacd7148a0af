"""Unpaired translators to hold MedShift against, one file each; all satisfy `medshift.translate.Translator`."""
