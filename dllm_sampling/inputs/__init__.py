"""What the world brings, read and checked: files, chats, ids, arguments. Knows nothing of decoding."""
