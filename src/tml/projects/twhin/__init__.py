"""TwHIN: vectors of users, authors and posts from who follows whom and who engaged with what."""
