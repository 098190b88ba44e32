package enforce

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/braidnet/braid/internal/kernel/netns/nstest"
	"github.com/braidnet/braid/netagent/policy/nftables"
)

// shared makes the lab's kernel one whose tables anybody can take away.
func (l *lab) shared() *lab {
	plane := l.plane.(*nftablesPlane)
	plane.options.Owned = false
	plane.state = nftables.NewState(plane.families, plane.options)
	plane.Forget()
	return l
}

// TestFlush: what is denied stays denied while others flush all rules: the kernel keeps the tables, or the agent shuts
// the node as soon as it sees that they are gone. Connections are tried all the time.
func TestFlush(t *testing.T) {
	for _, owned := range []bool{true, false} {
		name := map[bool]string{true: "owned", false: "shared"}[owned]
		t.Run(name, func(t *testing.T) {
			l := isolatedLab(t)
			if !owned {
				l.shared()
			}
			l.change(allowing("web", "b", "192.0.2.0/24"))
			l.reaches(false, "isolated")
			if plane := l.plane.(*nftablesPlane); plane.options.Owned != owned {
				t.Skip("this kernel has no tables that others cannot flush (Linux 6.9)")
			}
			ctx, cancel := context.WithCancel(t.Context())
			kicks, done := make(chan struct{}, 1), make(chan struct{})
			go func() {
				defer close(done)
				_ = l.node.Do(func() error {
					l.plane.Watch(ctx, func() {
						select {
						case kicks <- struct{}{}:
						default:
						}
					})
					return nil
				})
			}()
			let, tried := 0, 0
			const flushes = 20
			for range flushes {
				l.node.Exec(t, "nft", "flush", "ruleset")
				for until := time.Now().Add(2 * goneEvery); time.Now().Before(until); tried++ {
					select {
					case <-kicks:
						l.mustStep()
					default:
					}
					_ = l.pods["a"].Do(func() error {
						if c, err := net.DialTimeout("tcp4", "10.0.0.3:80", time.Second); err == nil {
							let++
							c.Close()
						}
						return nil
					})
				}
				if !owned {
					nstest.Wait(t, "the tables", func() error {
						select {
						case <-kicks:
							l.mustStep()
						default:
						}
						_, err := l.node.Output("nft", "list", "table", "ip", nftables.TableName)
						return err
					})
				}
				l.reaches(false, "after a flush")
			}
			cancel()
			<-done
			t.Logf("%d flushes, %d connections tried that are denied, %d let through", flushes, tried, let)
			if owned && let > 0 {
				t.Errorf("%d denied connections were let through", let)
			}
		})
	}
}

// TestShut: where the tables are gone, nobody is let through before everything is written anew, even if that fails.
func TestShut(t *testing.T) {
	l := isolatedLab(t).shared()
	l.change(allowing("web", "b", "192.0.2.0/24"))
	plane := l.plane.(*nftablesPlane)
	l.node.Exec(t, "nft", "flush", "ruleset")
	plane.gone.Store(true)
	plane.apply = refuseAll
	if _, err := l.Step(t.Context()); err == nil {
		t.Error("no error")
	}
	l.reaches(false, "shut")
	plane.apply = plane.conn.Apply
	l.change(allowing("open", "b", "10.0.0.0/24"))
	l.reaches(true, "written anew")
}
