"""The rules, a file for each or for a few that are close: settings, function, codes and their meanings."""
