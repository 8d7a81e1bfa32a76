package locker

// InMode is an option for a mode that no Backend of this module knows.
func InMode(m Mode, slots int) CallOption {
	return callOption(func(s *settings) error { s.mode, s.slots = m, slots; return nil })
}

// MostUnanswered and Cleaners bound what a store that hangs can cost.
const (
	MostUnanswered = mostUnanswered
	Cleaners       = cleaners
)
