package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/braidnet/braid/internal/kernel/ipt"
	"github.com/braidnet/braid/netagent/service"
	"github.com/braidnet/braid/netagent/service/iptables"
)

const (
	// retryClosed is how often frontends whose rules were refused are tried again: a kernel module may
	// have been loaded, or a tool replaced, since.
	retryClosed = time.Minute
	// namedMax bounds how many refused frontends are found one by one, a run of the tool each; halving
	// finds the others.
	namedMax = 100
	// toldMax bounds how many of them an error names.
	toldMax = 5
)

// leftOutError names the frontends that are closed because the tool refused their rules. All else is in
// force.
type leftOutError struct{ notes []string }

// Error implements error.
func (e *leftOutError) Error() string {
	notes := e.notes
	if n := len(notes); n > toldMax {
		notes = append(notes[:toldMax:toldMax], fmt.Sprintf("and %d more", n-toldMax))
	}
	return strings.Join(notes, "; ")
}

// leftOut returns a leftOutError when a frontend of any family is closed.
func (p *iptablesPlane) leftOut() error {
	var notes []string
	for _, f := range p.families {
		for _, c := range f.renderer.Closed() {
			notes = append(notes, closedText(&c))
		}
	}
	if len(notes) == 0 {
		return nil
	}
	return &leftOutError{notes}
}

func closedText(c *iptables.Closed) string {
	return fmt.Sprintf("service %s: its %s %s is closed: %s", c.Name(), c.Kind, c.Key, c.Reason)
}

// write loads what the renderer has pending; nothing is run when that is nothing.
func (f *iptablesFamily) write(log *slog.Logger) error {
	f.known = false
	begin, bytes := time.Now(), len(f.renderer.Pending())
	if err := f.load(); err != nil {
		if err := f.isolate(err); err != nil {
			return err
		}
	}
	if bytes > 0 {
		log.Debug("service rules written", "family", f.name, "bytes", bytes, "took", time.Since(begin))
	}
	f.known = true
	f.tell(log)
	return nil
}

// load loads what is pending. When the tool refuses a line that belongs to a frontend, the frontend is
// closed and the rest is tried again; any other refusal is the error returned.
func (f *iptablesFamily) load() error {
	for refused := 0; ; {
		input := f.renderer.Pending()
		var err error
		if input != "" {
			err = f.restore(input)
		}
		if err == nil {
			if f.renderer.Commit() {
				continue
			}
			return nil
		}
		key, ok := f.culprit(err)
		if !ok || refused == namedMax {
			return err
		}
		refused++
		one := []service.Key{key}
		if !f.renderer.Close(one, false, err.Error()) && !f.renderer.Close(one, true, err.Error()) {
			return err
		}
	}
}

// culprit returns the frontend whose rule the tool refused, false when it named none.
func (f *iptablesFamily) culprit(err error) (service.Key, bool) {
	var refused *ipt.RestoreError
	if !errors.As(err, &refused) {
		return service.Key{}, false
	}
	return f.renderer.Culprit(refused.Text)
}

// isolate finds the frontends to blame for a refusal that names no line of theirs: the older kernel
// tables check a table as a whole, at its COMMIT. With all that changed closed the rest must be taken,
// else it is no frontend's fault; then halves are opened again until those to blame are alone.
func (f *iptablesFamily) isolate(cause error) error {
	var refused *ipt.RestoreError
	suspects := f.renderer.Touched()
	if len(suspects) == 0 || !errors.As(cause, &refused) {
		return cause
	}
	if _, theirs := f.culprit(cause); !theirs && refused.Text != "COMMIT" {
		return cause
	}
	for _, bare := range []bool{false, true} {
		f.renderer.Close(suspects, bare, cause.Error())
		if f.load() == nil {
			return f.open(suspects, bare)
		}
	}
	return cause
}

// open opens closed frontends again, those of them that the tool takes.
func (f *iptablesFamily) open(list []service.Key, bare bool) error {
	f.renderer.Reopen(list)
	err := f.load()
	if err == nil {
		return nil
	}
	f.renderer.Close(list, bare, err.Error())
	if err := f.load(); err != nil { // the state before, which was taken
		return err
	}
	if len(list) == 1 {
		return nil
	}
	for _, half := range [][]service.Key{list[:len(list)/2], list[len(list)/2:]} {
		if err := f.open(half, bare); err != nil {
			return err
		}
	}
	return nil
}

// retry opens closed frontends again when it is time.
func (f *iptablesFamily) retry(now time.Time) {
	closed := f.renderer.Closed()
	if len(closed) == 0 || now.Sub(f.tried) < retryClosed {
		return
	}
	f.tried = now
	keys := make([]service.Key, len(closed))
	for i := range closed {
		keys[i] = closed[i].Key
	}
	f.renderer.Reopen(keys)
}

// tell logs which frontends were closed and which are no longer.
func (f *iptablesFamily) tell(log *slog.Logger) {
	now := map[service.Key]bool{}
	for _, c := range f.renderer.Closed() {
		now[c.Key] = true
		if !f.told[c.Key] {
			log.Error("a frontend is left out", "family", f.name, "service", c.Name(), "frontend", c.Key.String(), "err", c.Reason)
		}
	}
	for k := range f.told {
		if !now[k] {
			log.Info("a frontend is no longer left out", "family", f.name, "frontend", k.String())
		}
	}
	f.told = now
}
