// Package faultproxy is a TCP proxy that misbehaves on request. Tests put it
// between a client and a server to see what the client makes of refused,
// silent, slow or half-working connections.
//
//	proxy, err := faultproxy.Start(serverAddr)
//	...
//	defer proxy.Close()
//	client := dial(proxy.Addr())
//	proxy.Set(faultproxy.BlackHole())
//	... // the server seems to have vanished
//	proxy.Heal()
//
// A fault can be set for the whole proxy (Proxy.Set), for one connection
// (Conn.Set), or for the connections on which the client has sent something in
// particular (Proxy.SetWhere). The last call that concerns a connection wins.
//
// # What a fault guarantees
//
// When a call that sets or heals a fault returns, the change is in force:
// bytes that reach the proxy later are treated by the new rule, and bytes that
// had reached it before were treated by the old one. (With SetWhere, this is
// not quite true of replies; see there.)
//
// A byte stream with a hole in it must never go on, as no network does that.
// So a connection that lost anything to a fault, be it a byte or just the news
// that the other side hung up, is reset as soon as the direction which lost it
// would carry bytes again. A connection that was idle all the time survives.
//
// Without a fault the proxy passes on everything: bytes, half-closes (FIN) and
// resets.
package faultproxy
