"""Tables, figures and claims from run folders: what configurations reached and spent, beside the paper's numbers."""
