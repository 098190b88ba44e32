package main

import (
	"sync"
	"time"

	"github.com/braidnet/braid/internal/kernel/netns"
	"github.com/braidnet/braid/internal/kernel/nft"
)

// commits notes when the rules of a namespace changed: each nftables transaction raises a number, also
// one of the iptables tools that work on nftables. The number is asked for four times a millisecond, and
// less often the longer it takes.
type commits struct {
	stop chan struct{}
	done sync.WaitGroup
	seen []time.Time
	err  error
}

const lookEvery = 250 * time.Microsecond

// watchCommits watches until end.
func watchCommits(ns *netns.NS) (*commits, error) {
	var conn *nft.Conn
	err := ns.Do(func() (err error) {
		conn, err = nft.Open()
		return err
	})
	if err != nil {
		return nil, err
	}
	c := &commits{stop: make(chan struct{})}
	last, err := conn.Generation()
	if err != nil {
		conn.Close()
		return nil, err
	}
	c.done.Go(func() {
		defer conn.Close()
		for begin := time.Now(); ; {
			select {
			case <-c.stop:
				return
			case <-time.After(max(lookEvery, time.Since(begin)/400)):
			}
			now, err := conn.Generation()
			if err != nil {
				c.err = err
				return
			}
			if now != last {
				last = now
				c.seen = append(c.seen, time.Now())
			}
		}
	})
	return c, nil
}

// end stops watching and returns the times of all changes.
func (c *commits) end() ([]time.Time, error) {
	close(c.stop)
	c.done.Wait()
	return c.seen, c.err
}
