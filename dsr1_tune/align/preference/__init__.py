"""What reward models, DPO and KTO share: pair tokenisation, reference log-probabilities, metrics."""
