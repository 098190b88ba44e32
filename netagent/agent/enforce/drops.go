package enforce

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/braidnet/braid/internal/kernel/nflog"
	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/policy"
)

const (
	// sameDrop is for how long a line is not repeated, after which it says how often it would have been.
	sameDrop = 10 * time.Second
	// dropLines and dropBurst bound the lines about drops, per second and at once.
	dropLines, dropBurst = 10, 50
	// dropsKept bounds how many lines are remembered.
	dropsKept = 4096
	// dropsAgain is the time between attempts to listen.
	dropsAgain = 10 * time.Second
)

// dropTeller says of packets that were denied which policy denied them. The kernel tells of a few packets
// a second of each chain; rules that allow tell of none.
type dropTeller struct {
	log      *slog.Logger
	compiler *policy.Compiler
	open     func() (*nflog.Conn, error)
	limit    *rate.Limiter
	told     map[string]*toldDrop

	logged, repeated, stale, lost atomic.Uint64
}

// toldDrop is a line that was logged.
type toldDrop struct {
	again time.Time // when it may be logged again
	more  int       // how often it was not
}

func newDropTeller(log *slog.Logger, c *policy.Compiler) *dropTeller {
	return &dropTeller{log: log, compiler: c, limit: rate.NewLimiter(dropLines, dropBurst), told: map[string]*toldDrop{},
		open: func() (*nflog.Conn, error) { return nflog.Open(policy.LogGroup, policy.LogBytes) }}
}

// run listens until ctx ends.
func (d *dropTeller) run(ctx context.Context) {
	said := false
	for ctx.Err() == nil {
		conn, err := d.open()
		if err == nil {
			said = false
			stop := context.AfterFunc(ctx, conn.Close)
			err = d.listen(conn)
			if stop() {
				conn.Close()
			}
		}
		if ctx.Err() != nil {
			return
		}
		if !said {
			d.log.Warn("what policies deny cannot be told in the log; it is denied all the same", "err", err)
			said = true
		}
		select {
		case <-ctx.Done():
		case <-time.After(dropsAgain):
		}
	}
}

func (d *dropTeller) listen(conn *nflog.Conn) error {
	for {
		err := conn.Receive(func(p nflog.Packet) { d.take(p, time.Now()) })
		switch {
		case errors.Is(err, nflog.ErrLost):
			d.lost.Add(1)
		case err != nil:
			return err
		}
	}
}

// take logs why a packet was denied, if that is still true.
func (d *dropTeller) take(p nflog.Packet, now time.Time) {
	mark, ok := policy.ParseMark(p.Prefix)
	if !ok {
		return // somebody else's
	}
	drop, ok := d.compiler.Drop(mark, policy.Packet{Src: p.Src, Dst: p.Dst, Protocol: model.Protocol(p.Protocol), Port: p.DstPort})
	if !ok {
		d.stale.Add(1)
		return
	}
	line := drop.String()
	told := d.told[line]
	switch {
	case told != nil && now.Before(told.again):
		told.more++
		d.repeated.Add(1)
		return
	case !d.limit.AllowN(now, 1):
		d.repeated.Add(1)
		return
	}
	d.logged.Add(1)
	more := ""
	if told != nil && told.more > 0 {
		more = fmt.Sprintf(", and %d packets like it before", told.more)
	}
	d.log.Info(line + more)
	if told == nil && len(d.told) >= dropsKept {
		for k, t := range d.told {
			if !now.Before(t.again) {
				delete(d.told, k)
			}
		}
		if len(d.told) >= dropsKept {
			clear(d.told)
		}
	}
	d.told[line] = &toldDrop{again: now.Add(sameDrop)}
}
