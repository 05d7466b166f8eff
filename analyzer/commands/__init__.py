"""The commands. Rule: each file has those of one noun, as arguments → library → print; none turns an error
into text or an exit status, and none imports anything heavy before it is called.
"""
