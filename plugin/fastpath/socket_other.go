//go:build !linux

package fastpath

import (
	"errors"
	"net"
	"net/netip"
)

const batchLen = 1

type socket struct{}

func listen(string) (*socket, error) { return nil, errors.New("needs Linux") }

func (*socket) read(bool) (int, error)                    { return 0, errors.ErrUnsupported }
func (*socket) wake()                                     {}
func (*socket) close() error                              { return nil }
func (*socket) local() net.Addr                           { return nil }
func (*socket) request(int) []byte                        { return nil }
func (*socket) peer(int) netip.AddrPort                   { return netip.AddrPort{} }
func (*socket) isIPv4(int) bool                           { return false }
func (*socket) control(int) []byte                        { return nil }
func (*socket) reply() []byte                             { return nil }
func (*socket) queue(int, int)                            {}
func (*socket) flush() error                              { return errors.ErrUnsupported }
func (*socket) send([]byte, []byte, netip.AddrPort) error { return errors.ErrUnsupported }
func (*socket) steer(int, int) error                      { return errors.ErrUnsupported }
