#!/usr/bin/env ruby
# Asks a broker for a listener on the wire exactly as the client of the
# multibinder gem does, and checks what that client relies on:
#
#  - one sendmsg of the request, without `id` and without a line end;
#  - one recvmsg with :scm_rights, whose bytes are one whole JSON document and
#    which carries the descriptor;
#  - `error`, if there is one, has a `message` that is a string;
#  - a repeated request on the same connection gives the same socket;
#  - close-on-exec is cleared by the client, so the broker may set it.
#
# Usage: multibinder_client.rb SOCKET ADDRESS PORT. Exits 0 if all of it holds.

require 'fcntl'
require 'json'
require 'socket'

def ask(broker, bind)
  broker.sendmsg(JSON.dump('jsonrpc' => '2.0', 'method' => 'bind', 'params' => [bind]), 0, nil)
  text, _, _, control = broker.recvmsg(:scm_rights => true)
  reply = JSON.parse(text)
  if reply['error']
    raise "error.message is not a string: #{text}" unless reply['error']['message'].is_a?(String)
    return [reply, nil]
  end
  listener = control.unix_rights[0]
  listener.fcntl(Fcntl::F_SETFD, listener.fcntl(Fcntl::F_GETFD) & ~Fcntl::FD_CLOEXEC)
  [reply, listener]
end

path, address, port = ARGV
broker = UNIXSocket.open(path)
bind = { 'address' => address, 'port' => Integer(port), 'backlog' => 10240 }

reply, listener = ask(broker, bind)
abort "refused: #{reply['error']['message']}" if listener.nil?
local = listener.local_address
unless local.ip_address == address && local.ip_port == Integer(port)
  abort "asked for #{address}:#{port}, got #{local.inspect_sockaddr}"
end
abort 'the socket does not listen' unless listener.getsockopt(:SOCKET, :ACCEPTCONN).bool

_, again = ask(broker, bind)
abort 'a repeated bind gave another socket' unless again && again.stat.ino == listener.stat.ino

# An exec'd program inherits it: this is how the gem hands sockets to haproxy.
ok = system('test', '-e', "/proc/self/fd/#{listener.fileno}", :close_others => false)
abort 'the descriptor does not survive exec' unless ok

reply, nothing = ask(broker, 'address' => '203.0.113.1', 'port' => Integer(port))
abort 'an address of another machine was bound' unless nothing.nil? && reply['error']['code'].is_a?(Integer)

broker.close
puts "#{local.inspect_sockaddr} inode #{listener.stat.ino}"
