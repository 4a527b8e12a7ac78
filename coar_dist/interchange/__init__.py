"""Files of the COAR research code (github.com/MadryLab/modelcomponents), read and written: margins and attributions."""
