// Package backends has what the backends of this module share.
package backends

// Sentinel returns an error to be compared with errors.Is, of one of the classes of package locker, which it does not
// repeat in its text.
func Sentinel(class error, text string) error { return &sentinel{class, text} }

type sentinel struct {
	class error
	text  string
}

func (e *sentinel) Error() string { return e.text }
func (e *sentinel) Unwrap() error { return e.class }
