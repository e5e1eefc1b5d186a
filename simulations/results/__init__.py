"""Tables, figures and claims from run folders: results and costs of configurations, compared with the paper."""
