"""What only the course needs: a chapter's first cell, the checks of its exercises, the doctor."""
