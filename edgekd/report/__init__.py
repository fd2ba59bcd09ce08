"""What a run says of itself: report.json, its schema, verdicts and renderings. No torch, no network."""
