"""Binaries: parse flags, build a frozen configuration, call ``run(config, workdir)``. No science in here."""
