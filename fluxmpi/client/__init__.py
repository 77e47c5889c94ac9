"""What users import; see ``fluxmpi`` itself for the names."""
