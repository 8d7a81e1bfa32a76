package locker

// MostUnanswered and Cleaners bound what a store that hangs can cost.
const (
	MostUnanswered = mostUnanswered
	Cleaners       = cleaners
)
