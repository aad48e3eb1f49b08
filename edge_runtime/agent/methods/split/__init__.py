"""The lower blocks of a model, once for each example; their outputs go up. Forward passes only."""
