package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// final is an error that waiting cannot mend.
type final struct{ error }

func (f final) Unwrap() error { return f.error }

// await asks until cond returns nil, or a final error, or the time is over: then the error says what cond
// said last.
func await(ctx context.Context, what string, within time.Duration, cond func() error) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	var last error
	for {
		err := cond()
		var f final
		if err == nil || errors.As(err, &f) {
			return err
		}
		if last == nil || ctx.Err() == nil { // what the time's end itself broke explains nothing
			last = err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("waited %s in vain for %s: %w", within, what, last)
		}
	}
}
