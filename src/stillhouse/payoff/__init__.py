"""Which response pays: scores of a pool of models, what each response is predicted to gain, and sequential proof."""
