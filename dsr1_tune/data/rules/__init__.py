"""Rules that drop or repair records, and the packs that name which rules apply."""
