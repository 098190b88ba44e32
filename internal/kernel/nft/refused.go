package nft

import (
	"errors"
	"fmt"
)

// RefusedError is the kernel's refusal of a part of a transaction. Nothing of that transaction is in force.
type RefusedError struct {
	Set, Chain string // what it is about: one of them, or neither
	what       string
	err        error
}

// Refused makes such an error, as a kernel would that refuses what is done to a set or a chain.
func Refused(set, chain string, err error) *RefusedError {
	return &RefusedError{Set: set, Chain: chain, what: "set " + set + " chain " + chain, err: err}
}

// Error implements error.
func (e *RefusedError) Error() string { return fmt.Sprintf("nftables: %s: %v", e.what, e.err) }

// Unwrap returns the kernel's error number.
func (e *RefusedError) Unwrap() error { return e.err }

// Refusals lists the refusals in what Apply returned; none when it failed otherwise.
func Refusals(err error) (out []*RefusedError) {
	if one := (*RefusedError)(nil); errors.As(err, &one) {
		var many interface{ Unwrap() []error }
		if !errors.As(err, &many) {
			return []*RefusedError{one}
		}
		for _, e := range many.Unwrap() {
			out = append(out, Refusals(e)...)
		}
	}
	return out
}
