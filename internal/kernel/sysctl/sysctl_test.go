package sysctl_test

import (
	"errors"
	"os"
	"testing"

	"github.com/braidnet/braid/internal/kernel/netns/nstest"
	"github.com/braidnet/braid/internal/kernel/sysctl"
)

func TestSetForwarding(t *testing.T) {
	ns := nstest.New(t)
	for _, is4 := range []bool{true, false} {
		name := sysctl.Forwarding(is4)
		ns.Sysctl(t, name, "0")
		ns.Run(t, func() error {
			if changed, err := sysctl.Set(name, "1"); err != nil || !changed {
				t.Errorf("first Set(%s) = %v, %v", name, changed, err)
			}
			if v, err := sysctl.Get(name); err != nil || v != "1" {
				t.Errorf("%s = %q, %v", name, v, err)
			}
			if changed, err := sysctl.Set(name, "1"); err != nil || changed {
				t.Errorf("second Set(%s) = %v, %v: want nothing written", name, changed, err)
			}
			return nil
		})
	}
}

func TestErrors(t *testing.T) {
	ns := nstest.New(t)
	ns.Run(t, func() error {
		if _, err := sysctl.Set("net/ipv4/none", "1"); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("unknown parameter: %v", err)
		}
		if _, err := sysctl.Set(sysctl.Forwarding(true), "perhaps"); err == nil {
			t.Error("a word was taken for a number")
		}
		return nil
	})
}
